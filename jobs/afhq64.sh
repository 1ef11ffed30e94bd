#!/usr/bin/env bash
# AFHQ at 64 pixels; search_spaces/afhq64.yaml says how to get its images.
# Command, in the project's folder:
#   export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://HEAD:8265
#   ray job submit --working-dir . -- bash jobs/afhq64.sh
# Environment, by --runtime-env-json '{"env_vars": {"STUDY": "/shared/runs/afhq64"}}': IMAGES, the folder or zip of
# the images (default ~/data/afhq64), and STUDY, the folder of the study, on storage that all machines see
# (default ~/runs/afhq64, both of the head).
# Cost: 405 A100-hours, the winner's last 101 among them, 195 h on 8 GPUs, 11.9 GB of checkpoints (`cedm-ray plan
# search_spaces/afhq64.yaml --gpus 8xA100`, at the paper's 289 images/s of one A100 for this network).
# Expect: nothing is claimed; compare within the search.
# The same command goes on where it stopped. STUDY/exit.json says how it ended: Ray knows only 0 and 1.
exec python -m cedm_ray search search_spaces/afhq64.yaml \
  --images "${IMAGES:-$HOME/data/afhq64}" --study "${STUDY:-$HOME/runs/afhq64}"
