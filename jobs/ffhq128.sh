#!/usr/bin/env bash
# FFHQ at 128 pixels, whose configuration is not the paper's (search_spaces/ffhq128.yaml says what is unknown).
# Command, in the project's folder:
#   export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://HEAD:8265
#   ray job submit --working-dir . -- bash jobs/ffhq128.sh
# Environment, by --runtime-env-json '{"env_vars": {"STUDY": "/shared/runs/ffhq128"}}': IMAGES, the folder or zip of
# the images (default ~/data/ffhq128), and STUDY, the folder of the study, on storage that all machines see
# (default ~/runs/ffhq128, both of the head).
# Cost: 1,607 A100-hours, the winner's last 399 among them, 774 h on 8 GPUs, 11.9 GB of checkpoints: an estimate by
# operations from the paper's rate at 64 pixels (`cedm-ray plan search_spaces/ffhq128.yaml --gpus 8xA100`).
# Expect: nothing is claimed; the figures of the paper are of 200 million images and 50,000 samples,
# those of a search of 100 million and 10,000: compare within the search.
# The same command goes on where it stopped. STUDY/exit.json says how it ended: Ray knows only 0 and 1.
exec python -m cedm_ray search search_spaces/ffhq128.yaml \
  --images "${IMAGES:-$HOME/data/ffhq128}" --study "${STUDY:-$HOME/runs/ffhq128}"
