#!/usr/bin/env bash
# Your own images, by search_spaces/new_dataset.yaml or a copy of it in which you have changed what you like.
# Command, in the project's folder:
#   export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://HEAD:8265
#   ray job submit --working-dir . -- bash jobs/new_dataset.sh
# Environment, by --runtime-env-json '{"env_vars": {"SPACE": "mine.yaml", "IMAGES": "/shared/images"}}': SPACE, the
# search space (default search_spaces/new_dataset.yaml), IMAGES, the folder or zip of the images (default
# ~/data/images), and STUDY, the folder of the study, on storage that all machines see (default ~/runs/new_dataset, both
# of the head).
# Cost: as the template stands 35 to 62 A100-hours and 13.8 GB of checkpoints (`cedm-ray plan
# search_spaces/new_dataset.yaml --gpus A100`, at the paper's 289 images/s of one A100); plan yours before you submit.
# Expect: nothing is claimed; compare within the search.
# The same command goes on where it stopped. STUDY/exit.json says how it ended: Ray knows only 0 and 1.
exec python -m cedm_ray search "${SPACE:-search_spaces/new_dataset.yaml}" \
  --images "${IMAGES:-$HOME/data/images}" --study "${STUDY:-$HOME/runs/new_dataset}"
