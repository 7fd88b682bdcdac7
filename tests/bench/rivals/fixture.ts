/** What every list shows, and what the measurement may do with each. */

import "../../../daemon/holdoverd/web/client/src/style.css";

export const MESSAGES = 10_000;
export const PAGE = 100;
/** What a page of messages takes to come, in ms. */
export const LATENCY_MS = 20;
/** How far beyond the view a list has rows at hand, in px: as far as the web client's does in this view. */
export const AHEAD = 1200;

const WORDS = "the reference is gone and so a clock keeps time by what it holds until it is found again".split(" ");

/** The text of message n = 1, 2, 3 …: the same everywhere, of 5 to 204 words. */
export function textOf(n: number): string {
  const words = [`message ${n}:`];
  for (let at = 0; at < 5 + ((n * 104_729) % 200); at += 1) words.push(WORDS[(n * 31 + at * 7) % WORDS.length]!);
  return words.join(" ");
}

export function pageOf(page: number): number[] {
  return Array.from({ length: PAGE }, (_, at) => page * PAGE + at + 1);
}

export function later(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, LATENCY_MS));
}

/** The measurement's hold on a list. Every row is an element `[data-row="n"]` of message n. */
export interface List {
  view(): HTMLElement;
  /** The page of the first message that the list has been given. */
  first(): number;
  /** The last message becomes longer by a few words. */
  grow(): void;
  /** One more message at the end. */
  append(): void;
}

declare global {
  interface Window {
    list: List;
    /** performance.now() when the list was asked to be there, and when its last message stood there. */
    mounted: Promise<number>;
  }
}

/** Time `mount` up to the frame after the one in which the last message stands there. */
export function time(mount: () => void): void {
  const began = performance.now();
  mount();
  window.mounted = new Promise((resolve) => {
    const look = (): void => {
      const row = document.querySelector(`[data-row="${MESSAGES}"]`);
      // Lists hide rows that they have not measured yet: those can be nobody's first sight.
      const shown = row !== null && row.checkVisibility({ visibilityProperty: true });
      if (shown && row.getBoundingClientRect().bottom > 0 && row.getBoundingClientRect().top < innerHeight) {
        requestAnimationFrame(() => resolve(performance.now() - began));
      } else requestAnimationFrame(look);
    };
    look();
  });
}
