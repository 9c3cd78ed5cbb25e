"""What the stages do: one file each, ``run(job)`` writes the files of the result."""
