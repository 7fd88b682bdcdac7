"""The deploy: a new generation is started, tried, and made permanent, or taken back.

Standard library only, and synchronous: a process of its own, which an administrator can read, kill
and run again. `rules` decides the next step from what is there, `gate` tries a candidate, `control`
speaks to it, `watch` listens to those before it, `hosts` is what differs between systemd and `holdover
up`, `run` puts them together.
"""
