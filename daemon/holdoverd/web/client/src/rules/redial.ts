/** When to connect again, and whether to. No I/O, no clock. */

export const MAX_DELAY_MS = 3000;

/** The pause before the attempt after `failures` failed ones; `jitter` in [0, 1) spreads viewers. */
export function delayMs(failures: number, jitter: number): number {
  return Math.min(MAX_DELAY_MS, 200 * 2 ** Math.min(failures, 10)) * (0.25 + 0.75 * jitter);
}

export type Verdict = "again" | "ended" | "login" | "unshared" | "gone";

/** What a close code means (the contract's list); all others: connect again with the cursor. */
export function verdict(code: number): Verdict {
  switch (code) {
    case 1000:
      return "ended";
    case 4001:
      return "login";
    case 4003:
      return "unshared";
    case 4004:
      return "gone";
    default:
      return "again";
  }
}
