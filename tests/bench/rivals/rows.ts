/** What the rivals have in common: plain rows, and messages that come in pages. */

import { createElement, useState } from "react";
import { later, MESSAGES, PAGE, pageOf, textOf } from "./fixture";

export interface Entry {
  n: number;
  text: string;
}

export function row({ n, text }: Entry) {
  // As wide as in the web client, so that a message is as high.
  const style = { maxWidth: "50rem", margin: "0 auto" };
  return createElement("div", { className: "row text", "data-row": n, style }, createElement("p", null, text));
}

export interface Entries {
  entries: Entry[];
  first: number;
  /** Have the page before the first come. */
  earlier(): void;
}

const entriesOf = (page: number): Entry[] => pageOf(page).map((n) => ({ n, text: textOf(n) }));

/** State of a component: the last two pages at first, and what is asked for. */
export function useEntries(prepending = (): void => {}): Entries {
  const last = MESSAGES / PAGE - 1;
  const [state, setState] = useState(() => ({ first: last - 1, entries: [...entriesOf(last - 1), ...entriesOf(last)] }));
  const [loading] = useState(() => ({ now: false }));
  window.list.first = () => state.first;
  window.list.grow = () =>
    setState(({ first, entries }) => {
      const end = entries.at(-1)!;
      return { first, entries: [...entries.slice(0, -1), { ...end, text: `${end.text} a few words more` }] };
    });
  window.list.append = () =>
    setState(({ first, entries }) => {
      const n = entries.at(-1)!.n + 1;
      return { first, entries: [...entries, { n, text: textOf(n) }] };
    });
  const earlier = (): void => {
    if (loading.now || state.first === 0) return;
    loading.now = true;
    void later().then(() => {
      loading.now = false;
      prepending();
      setState(({ first, entries }) => ({ first: first - 1, entries: [...entriesOf(first - 1), ...entries] }));
    });
  };
  return { ...state, earlier };
}
