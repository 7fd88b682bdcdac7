import { defineConfig } from "vitest/config";

export default defineConfig({
  base: "/",
  build: {
    target: "es2022",
    // The policy allows no inline anything, data: fonts and styles included.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    emptyOutDir: true,
  },
  test: { include: ["src/**/*.test.ts"] },
});
