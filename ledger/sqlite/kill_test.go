package sqlite

const killEnv = "LEDGER_KILL_PATH"

func workUntilKilled(string) int { return 1 }
