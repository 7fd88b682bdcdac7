"""The demo agent: Holdover without an account, and an agent that does as it is told in tests.

``python -I -m holdoverd.demo [--session-id=UUID | --resume=UUID] [--model=M]
[--permission-mode=M]`` speaks the agent's side of stream-json on stdin and stdout. There is no
model behind it and it says so: what it does is written in the prompt, see `script`.

Promises: standard library only and started in a few hundredths of a second; deterministic (texts,
uuids and order follow from session id and prompts alone); frames as the real agent of 2.1.330
sends them, in its order, where the two can be compared. A prompt is in the transcript
(``$HOME/.local/state/holdover-demo/<session>.jsonl``) before its echo is printed, and one that
comes again to the same process is echoed but not acted upon.

Does not: touch anything else, merge queued prompts into one turn (each gets its own), or ask for
permission on account of the permission mode: it asks when its script says so.
"""
