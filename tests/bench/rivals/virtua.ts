/**
 * virtua as its author has it for a chat that streams: the stories "Chat" and "Chatbot" of its repository.
 *
 * `shift` is on for just that render in which messages are put above, and off in every other, as
 * the property's own text demands. Who is at the end, to 1.5 pixels, is brought to the end by
 * `scrollToIndex` whenever a message came or changed. Items come as `data`, so that only those in
 * view are made into elements. Beyond the stories: `bufferSize` (200 unless told) is the 1,200
 * pixels for which our list reaches ahead too, and a page is asked for as soon as it is within those.
 */

import { createElement, useEffect, useLayoutEffect, useRef } from "react";
import { createRoot } from "react-dom/client";
import { VList, type VListHandle } from "virtua";
import { AHEAD, time, type List } from "./fixture";
import { row, useEntries, type Entry } from "./rows";

const item = (entry: Entry) => createElement("div", { key: entry.n }, row(entry));

function Messages() {
  const list = useRef<VListHandle>(null);
  const isPrepend = useRef(false);
  const shouldStickToBottom = useRef(true);
  const { entries, earlier } = useEntries(() => {
    isPrepend.current = true;
  });
  useLayoutEffect(() => {
    isPrepend.current = false;
  });
  useEffect(() => {
    if (shouldStickToBottom.current) list.current?.scrollToIndex(entries.length - 1, { align: "end" });
  }, [entries]);
  return createElement(VList<Entry>, {
    ref: list,
    className: "virtua",
    style: { height: "100%" },
    shift: isPrepend.current,
    bufferSize: AHEAD,
    data: entries,
    children: item,
    onScroll: (offset: number) => {
      const handle = list.current;
      if (handle === null) return;
      shouldStickToBottom.current = offset - handle.scrollSize + handle.viewportSize >= -1.5;
      if (offset < AHEAD) earlier();
    },
  });
}

window.list = { view: () => document.querySelector<HTMLElement>(".virtua")! } as List;
time(() => createRoot(document.querySelector("#app")!).render(createElement(Messages)));
