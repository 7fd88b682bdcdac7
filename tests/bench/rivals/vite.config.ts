import { defineConfig } from "vite";

// One page a list; the folder to build into is told by the measurement.
export default defineConfig({
  base: "./",
  build: {
    target: "es2022",
    emptyOutDir: true,
    rollupOptions: { input: ["ours.html", "virtuoso.html", "virtua.html"] },
  },
});
