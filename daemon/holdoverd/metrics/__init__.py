"""What `GET /metrics` tells: one literal table of metrics, and what this instance counts.

`counts` are plain numbers, added to where things happen; `table` names and explains every metric;
`gather` looks at the instance when somebody asks; `exposition` makes the text, and is the only
part that needs prometheus-client. Nothing here is on the path from an agent to its viewers but
integer additions.

A capability with metrics of its own adds rows to `table.METRICS` and a source to `Metrics`.
"""
