"""Results of runs as tables and pictures. Every number is read from the files of the runs.

- runs: files of finished runs, and runs grouped by network.
- stats: means, intervals and paired differences over seeds.
- tables: tables and lines on stdout.
- plots: all figures.
- inspect: partition, costs, location of dynamic positions and variation over inputs of one run.
- sweep: trains the variants of an ablation file over seeds.
- sweep_report: page, table and figures of a sweep.
- demo: trains and compares four networks on embedded data.
"""
