/**
 * react-virtuoso as its author has it for endless scrolling upwards: the guides "Prepend items" and "Stick
 * to bottom" of its documentation, the examples `prepend-as-you-scroll` and `prepend-stress` of its
 * repository.
 *
 * `firstItemIndex` falls in the same render in which the data grow; `startReached` asks for more;
 * `followOutput` keeps who is at the end there; `skipAnimationFrameInResizeObserver` is what it has
 * against flicker, `defaultItemHeight` against a first row that is not like the others; rows have no
 * outer margins, which it cannot measure. `increaseViewportBy` is the 1,200 pixels for which our list
 * reaches ahead too. For chats its author recommends another component, which is sold: not measured.
 */

import { createElement } from "react";
import { createRoot } from "react-dom/client";
import { Virtuoso } from "react-virtuoso";
import { AHEAD, PAGE, time, type List } from "./fixture";
import { row, useEntries, type Entry } from "./rows";

const keyOf = (_: number, entry: Entry) => entry.n;
const item = (_: number, entry: Entry) => row(entry);

function Messages() {
  const { entries, first, earlier } = useEntries();
  return createElement(Virtuoso<Entry>, {
    style: { height: "100%" },
    data: entries,
    firstItemIndex: first * PAGE,
    initialTopMostItemIndex: { index: "LAST", align: "end" },
    computeItemKey: keyOf,
    itemContent: item,
    followOutput: true,
    increaseViewportBy: AHEAD,
    skipAnimationFrameInResizeObserver: true,
    defaultItemHeight: 140,
    startReached: earlier,
  });
}

window.list = { view: () => document.querySelector<HTMLElement>("[data-virtuoso-scroller]")! } as List;
time(() => createRoot(document.querySelector("#app")!).render(createElement(Messages)));
