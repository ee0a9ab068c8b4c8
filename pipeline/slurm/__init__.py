"""Runs as Slurm jobs: a site, the jobs of a recipe, their scripts, and talking to Slurm. Layer 5.

Reading order: `site_file`, `jobs`, `script` (with `job.sbatch.jinja`), `scheduler`, `submit`.
"""
