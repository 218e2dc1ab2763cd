"""Names in a job's place that clients and runners agree on."""

JOB_STATUS_FILE = "job_status.json"
"""File with the job's status."""

INPUT_DIR = "inputs"
"""Directory of a job's inputs."""

OUTPUT_DIR = "outputs"
"""Directory of a job's results."""

DEFAULT_PAYLOAD_FILE = "input"
"""Input that holds the payload of the job's request."""

DEFAULT_OUTPUT_FILE = "output"
"""Result that a client gets who does not name one."""

DEFAULT_PAYLOAD_PATH = INPUT_DIR + "/" + DEFAULT_PAYLOAD_FILE
"""Path of the payload in a job's place."""

DEFAULT_OUTPUT_PATH = OUTPUT_DIR + "/" + DEFAULT_OUTPUT_FILE
"""Path of the default result in a job's place."""
