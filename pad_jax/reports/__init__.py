"""What runs have found out, as tables and pictures. Every number is read from the files that the runs left.

runs         the files of a run, and runs by network
estimates    mean and standard error over seeds
comparison   networks side by side, as a table
plots        training curves, and what is dynamic in each layer, as figures
tables       tables and lines on stdout
demo         trains, compares and plots four networks on embedded data

inspection      one run: its partition, what that saves (network_forms), and what follows
locations       where dynamic positions lie
analysis        how much the network varies over inputs (by sums: variation), and how it routes
analysis_plots  both as figures


sweep_layout    the folder of a sweep
ablations       what a sweep compares: files of configs/ablations/
sweeps          trains the cells of a sweep, each in a process of its own (cell)
sweep_progress  how far it is
sweep_results   what its cells have come to, with intervals over seeds (intervals)
sweep_report    all of that written: sweep_tables, sweep_figures (sweep_plots, mask_overlap), sweep_page
"""
