"""What runs have found out, as tables and pictures. Every number is read from the files that the runs left.

runs         the files of a run, and runs by network
estimates    mean and standard error over seeds
comparison   networks side by side, as a table
plots        training curves, and what is dynamic in each layer, as figures
tables       tables and lines on stdout
inspection   the partition of one run
demo         trains, compares and plots four networks on embedded data

sweep_layout    the folder of a sweep
ablations       what a sweep compares: files of configs/ablations/
sweeps          trains the cells of a sweep, each in a process of its own (cell)
sweep_progress  how far it is
"""
