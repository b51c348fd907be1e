"""The studies of `scripts/science`: what each compares, and how it is run, measured and shown.

This folder is also a plug-in folder of the catalogue (POSTTRAIN_PATH): `rewards/` holds the rewards of the tasks.
"""
