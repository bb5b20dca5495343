"""What the numbers mean and when they mislead: the end of ``--help``."""

EPILOG = """\
rows are called NETWORK/SCAN/PROGRAM, as --list shows. --rows takes names (default/ct_001/v2), beginnings
(default/ct_001) and patterns ('*/ct_001/app-*'); the windows that a row needs come along. Rows of a group (one network
on one scan, or on the two tiled ones) take turns, A B C A B C, and every run is a process of its own. A bench that was
stopped goes on where it was. Runs of another code, bundle or machine are never compared: their group begins anew.

networks
  default   weights/default as it is shipped (--bundle for another): linear interpolation, logits averaged
  paper     the paper's size (preset paper-3d, 112 x 160 x 128, 30.8 M parameters) at the default's spacing, with seeded
            random weights: cubic splines, probabilities averaged, as nnU-Net v1. Its labels are noise, the worst
            case for restoration in normal mode; its time and memory up to there are those of a trained network.
  nnU-Net runs the same weights, patch, step (0.7) and spacing through its own code, in fp32, without mirroring:
  v1 in its mode `fastest`, v2 in the only one that it has (that of our `normal`).

scans
  ct_001, ct_006, ct_007   as they are
  ct_007_slices_N          interpolated along z to N slices over the same 480 mm: as many windows, more voxels
  ct_007_tiled_N           padded to 512 x 512, repeated along z to N slices of 3 mm: more windows too. The default
                           bundle bounds its grid to 400 planes, so it sees 1200 slices at 9 mm; rows `-off` (heavy)
                           keep the network's 2.5 mm.

this app predicts all windows of a scan, as nnU-Net does (--crop none). Rows `-shipped` do what the default bundle says:
where its locator finds the organs, only their box is predicted, with fewer windows.

numbers
  wall s         from before the start of the process to after its end. Sampling makes it up to 0.05 s too long.
  CPU s          user and system time of all processes. Spinning threads count as work.
  peak MiB       largest sum of resident memory over the process and its children, every 50 ms. Shared pages count once
                 for each process (v1 and v2 have several, so theirs is a little too high); a shorter spike is missed.
                 The limits also look at the kernel's own peak of the app's process (app_peak_mib).
  start-up       wall minus the app's own total: interpreter, imports, plan, exit
  load           waiting for the network with the first window; it is loaded beside reading and resampling
  locate         finding the part of the scan that holds the organs, if the bundle says so
  other          what no stage counts
  floor s        windows x the bare window: median time of one window of noise in a process that does nothing else, on
                 the same backend and precision, measured in the same round. It is not the least possible: a faster
                 backend lowers it. A warm window may be faster than one between the app's other work, by caches.
  ours / theirs  run k of ours by run k of theirs, then the median, so that a slow minute of the machine strikes both.
                 Only `same windows` is a fair pair: otherwise one side has predicted more.

  1 - DSC of bf16 against fp32: of the organs of over 1 ml, the label map of each run in bf16 against that of the same
                 scan and mode in fp32; a target takes the worst of its scan
  others         cores that the rest of the machine kept busy meanwhile, mean. Above 0.1 or so, wall times are not to be
                 trusted, and the floor least: it is short, and the others may have paused. Run it again.

when all of it misleads: a busy machine (see others), a CPU that throttles, a first run on cold disk caches, a
container's cpu.max that PyTorch does not see. Give everything the same cores with
  taskset -c 0,1 python -m tools.bench

written to --work (with --quick: to quick/ in it): bench.json (after every run), bench.md, bench-time.png,
bench-memory.png; scans (under 1 GB), bundles, models, label maps, logs.

examples:
  python -m tools.bench --quick                        a minute: is everything in place?
  python -m tools.bench --rows default/ct_001          both precisions and modes, v1 and v2, five times each
  python -m tools.bench --rows 'paper/ct_001/*-fastest'
  python -m tools.bench --from build/bench/bench.json  draw again

exit codes: 0 done, 1 a row failed (the others went on), 2 wrong use, 3 a scan is not there or --work cannot be
written, 4 the bundle is unusable, 130 interrupted
"""
