/** react-virtuoso as its documentation has it for endless scrolling upwards: `firstItemIndex` falls. */

import { createElement } from "react";
import { createRoot } from "react-dom/client";
import { Virtuoso } from "react-virtuoso";
import { PAGE, time, type List } from "./fixture";
import { row, useEntries, type Entry } from "./rows";

function Messages() {
  const { entries, first, earlier } = useEntries();
  return createElement(Virtuoso<Entry>, {
    style: { height: "100%" },
    data: entries,
    firstItemIndex: first * PAGE,
    initialTopMostItemIndex: { index: "LAST", align: "end" },
    computeItemKey: (_, entry) => entry.n,
    itemContent: (_, entry) => row(entry),
    followOutput: true,
    increaseViewportBy: 1200,
    // What its documentation has against flicker, and against a first row that is not like the others.
    skipAnimationFrameInResizeObserver: true,
    defaultItemHeight: 140,
    startReached: earlier,
  });
}

window.list = { view: () => document.querySelector<HTMLElement>("[data-virtuoso-scroller]")! } as List;
time(() => createRoot(document.querySelector("#app")!).render(createElement(Messages)));
