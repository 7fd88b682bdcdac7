/** virtua as its documentation has it for a chat: `shift` while messages are put above. */

import { createElement, useEffect, useLayoutEffect, useRef } from "react";
import { createRoot } from "react-dom/client";
import { VList, type VListHandle } from "virtua";
import { time, type List } from "./fixture";
import { row, useEntries } from "./rows";

function Messages() {
  const list = useRef<VListHandle>(null);
  const isPrepend = useRef(false);
  const pinned = useRef(true);
  const { entries, earlier } = useEntries(() => {
    isPrepend.current = true;
  });
  useLayoutEffect(() => {
    isPrepend.current = false;
  });
  useEffect(() => {
    if (pinned.current) list.current?.scrollToIndex(entries.length - 1, { align: "end" });
  }, [entries]);
  return createElement(VList, {
    ref: list,
    className: "virtua",
    style: { height: "100%" },
    shift: isPrepend.current,
    bufferSize: 1200,
    onScroll: (offset: number) => {
      const handle = list.current;
      if (handle === null) return;
      pinned.current = offset - handle.scrollSize + handle.viewportSize >= -2;
      if (offset < 1200) earlier();
    },
    children: entries.map((entry) => createElement("div", { key: entry.n }, row(entry))),
  });
}

window.list = { view: () => document.querySelector<HTMLElement>(".virtua")! } as List;
time(() => createRoot(document.querySelector("#app")!).render(createElement(Messages)));
