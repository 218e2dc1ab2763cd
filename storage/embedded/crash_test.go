package embedded_test

const victimDir = "SHEPHERD_TEST_VICTIM_DIR"

func runVictim(dir string) {}
