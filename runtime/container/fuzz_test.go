package container

import (
	"slices"
	"strings"
	"testing"
)

// FuzzLabels: whatever an image's labels say of how it is given jobs is a contract
// and a command that can be started, or an error.
func FuzzLabels(f *testing.F) {
	f.Add("command", "sh -c 'tr a b < {inputs}/input'", true, "")
	f.Add("", `["sh", "-c", "a b"]`, true, "")
	f.Add("cog", "", false, "0.9")
	f.Add("http", "'a", true, "x")
	f.Fuzz(func(t *testing.T, contract, command string, hasCommand bool, cog string) {
		labels := map[string]string{contractLabel: contract}
		if hasCommand {
			labels[commandLabel] = command
		}
		if cog != "" {
			labels[cogLabels[0]] = cog
		}
		in, err := chooseContract(ContractAuto, labels)
		if err != nil {
			return
		}
		if in.contract == ContractAuto || in.contract.check() != nil {
			t.Errorf("the contract is %q", in.contract)
		}
		if in.command != nil && (len(in.command) == 0 || in.command[0] == "" || slices.ContainsFunc(in.command, func(w string) bool { return strings.ContainsRune(w, 0) })) {
			t.Errorf("the command is %q", in.command)
		}
	})
}

// FuzzStopSignal: an image's STOPSIGNAL is a signal, none, or an error.
func FuzzStopSignal(f *testing.F) {
	for _, text := range []string{"", "SIGINT", "int", "15", "RTMIN+3", "-1", "65", "0x9", "9999999999999999999"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		sig, err := stopSignal(text)
		if err == nil && (sig < 0 || sig > 64 || sig == 0 && text != "") || err != nil && (sig != 0 || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%q is %d, %v", text, sig, err)
		}
	})
}
