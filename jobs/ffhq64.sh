#!/usr/bin/env bash
# FFHQ at 64 pixels, at the paper's scale; search_spaces/ffhq64.yaml says how to get its images.
# Command, in the project's folder:
#   export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://HEAD:8265
#   ray job submit --working-dir . -- bash jobs/ffhq64.sh
# Environment, by --runtime-env-json '{"env_vars": {"STUDY": "/shared/runs/ffhq64"}}': IMAGES, the folder or zip of
# the images (default ~/data/ffhq64), and STUDY, the folder of the study, on storage that all machines see
# (default ~/runs/ffhq64, both of the head).
# Cost: 405 A100-hours, the winner's last 101 among them, 195 h on 8 GPUs, 11.9 GB of checkpoints (`cedm-ray plan
# search_spaces/ffhq64.yaml --gpus 8xA100`, at the paper's 289 images/s of one A100).
# Expect: C_V near 400 (the paper); the figures of the paper are of 200 million images and 50,000 samples,
# those of a search of 100 million and 10,000: compare within the search.
# The same command goes on where it stopped. STUDY/exit.json says how it ended: Ray knows only 0 and 1.
exec python -m cedm_ray search search_spaces/ffhq64.yaml \
  --images "${IMAGES:-$HOME/data/ffhq64}" --study "${STUDY:-$HOME/runs/ffhq64}"
