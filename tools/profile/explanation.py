"""What the numbers mean and how to use the profiler: the end of ``--help``."""

EPILOG = """\
a command:   its output goes where it always goes, and its exit code is this program's. --report names the file that
             a command of this app writes with its own --report; then every stage's memory and CPU are told.
an image:    FLARE's `docker container run ... /bin/bash -c "sh predict.sh"`, one start per scan, none else in between.
             A case that runs into --timeout is stuck, one that ends with an exit code or without label map has failed:
             both get the challenge's penalties (3600 s, GPU area 29491200, CPU area 360000) in the table.
again:       figures and picture anew from the samples in a folder, as after `kill -9` of the profiler.

two scopes, side by side:
  host, gpu   what the organisers look at: all that the machine and the device do, whoever does it. On a machine that
              does other things as well these numbers are not the command's; the baseline says how much it did before.
  own         the command's process tree, or the container.

protocols (--protocol)
  flare22          table with GPU_Mem (the largest value in more than 2 % of the samples); no limits
  flare23 flare24  table with MaxGPU_Mem (the plain maximum); -m 28G --shm-size 28gb
  laptop           as flare23, without GPU, -m 8G
-m, --memory-swap, --cpus and --shm-size go on to `docker container run` and win over the protocol's.

written for a command, to --out:
  samples.jsonl    every sample, at once: a killed run keeps its curves
  profile.json     figures;  profile.png: curves with the stages;  report.json: copy of the app's report
written for an image, to --out/TEAM:
  CASE.json, CASE_{CPU,RAM,GPU}-Time.png, TEAM_Efficiency.csv     the organisers' files
  harness.json, details/details.csv, details/CASE/ (as for a command, and log.txt), outputs/
No GPU: no GPU curve, empty cells, and the reason in profile.json. tools/profile/README.md has every number, what it
means and when it misleads.

examples:
  python -m tools.profile --out p1 --report r.json -- python -m app --input s.nii.gz --output l.nii.gz --report r.json
  python -m tools.profile --out p2 --timeout 60 -- sh -c 'make something | wc'
  python -m tools.profile --out p3 --image 3dcps:cpu --inputs scans --protocol laptop --stages
  python -m tools.profile --out p4 --image team:latest --inputs scans --gpu-index 1 --protocol flare22
  python -m tools.profile --again p1

exit codes of a command: its own; 124 it ran into --timeout; 127 it could not be started
exit codes of an image: 0 all cases ok; 1 some case failed or was stuck; 130 interrupted
of both: 2 wrong use; 3 a folder cannot be read or written; 4 no Docker, no such image, no such GPU
"""
