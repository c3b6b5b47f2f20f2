"""
The benchmark suite: airflow_arbiter beside the other ways to serve the same app, in one run.

``python benchmarks`` runs it. ``contestants`` and ``airflow`` say who is compared; ``rolls``, ``serving`` and
``boots`` what is measured; ``ruler`` and ``memory`` read the kernel; ``load`` and ``pace`` ask; ``plan``
orders it all; ``record`` keeps it; and ``results``, ``goals``, ``report``, ``plots`` and ``pages`` write it.
"""
