#!/usr/bin/env bash
# CIFAR-100 at the paper's scale; search_spaces/cifar100.yaml says how to get its images.
# Command, in the project's folder:
#   export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://HEAD:8265
#   ray job submit --working-dir . -- bash jobs/cifar100.sh
# Environment, by --runtime-env-json '{"env_vars": {"STUDY": "/shared/runs/cifar100"}}': IMAGES, the folder or zip of
# the images (default ~/data/cifar100), and STUDY, the folder of the study, on storage that all machines see
# (default ~/runs/cifar100, both of the head).
# Cost: 199 A100-hours, the winner's last 49 among them, 96.6 h on 8 GPUs, 10.7 GB of checkpoints (`cedm-ray plan
# search_spaces/cifar100.yaml --gpus 8xA100`, at the paper's 579 images/s of one A100).
# Expect: C_V near 200 (the paper); the figures of the paper are of 200 million images and 50,000 samples,
# those of a search of 100 million and 10,000: compare within the search.
# The same command goes on where it stopped. STUDY/exit.json says how it ended: Ray knows only 0 and 1.
exec python -m cedm_ray search search_spaces/cifar100.yaml \
  --images "${IMAGES:-$HOME/data/cifar100}" --study "${STUDY:-$HOME/runs/cifar100}"
