import { expect, test } from "vitest";
import type { Job, JobState } from "../wire";
import { ACTIONS, fraction, isOpen, ranMs } from "./jobs";

function job(fields: Partial<Job>): Job {
  return {
    id: "j_1",
    owner: "default",
    processor: "checksum",
    files: [],
    params: {},
    state: "running",
    attempt: 1,
    max_attempts: 3,
    progress: null,
    result: null,
    error: null,
    session: null,
    created_at: 0,
    started_at: 1000,
    finished_at: null,
    ...fields,
  };
}

test("progress is told while it runs and a total is known", () => {
  expect(fraction(job({ progress: { bytes: 5, total: 20 } }))).toBe(0.25);
  expect(fraction(job({ progress: { bytes: 30, total: 20 } }))).toBe(1);
  expect(fraction(job({ progress: { bytes: 5, total: null } }))).toBeNull();
  expect(fraction(job({ progress: { bytes: 0, total: 0 } }))).toBeNull();
  expect(fraction(job({}))).toBeNull();
  expect(fraction(job({ state: "ready", progress: { bytes: 5, total: 20 } }))).toBeNull();
});

test("how long it ran ends with it, and a clock that was set back makes it no less than nothing", () => {
  expect(ranMs(job({}), 4000)).toBe(3000);
  expect(ranMs(job({ state: "done", finished_at: 2500 }), 4000)).toBe(1500);
  expect(ranMs(job({}), 0)).toBe(0);
  expect(ranMs(job({ state: "ready" }), 4000)).toBeNull();
  expect(ranMs(job({ state: "cancelled", started_at: null }), 4000)).toBeNull();
});

test("what may be done is never both, and nothing with what is done", () => {
  for (const state of Object.keys(ACTIONS) as JobState[]) {
    expect(ACTIONS[state].length).toBe(state === "done" ? 0 : 1);
    expect(isOpen(job({ state }))).toBe(ACTIONS[state][0] === "cancel");
  }
});
