"""What is allowed: what a name is and who may make it, who may write what, and how much of it.

All of it is pure: callers bring the facts (attributes, accounts, ids) and get a verdict.

* ``names``: what a name in the root of the spool is, and who may create it.
* ``rights``: who may read, write, remove and rename; the mode the spool's directory shows.
* ``budgets``: counters per user with a limit.
* ``programs``: programs the configuration names.
"""
