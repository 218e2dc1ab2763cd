package gpu

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The test program stands in for shepherd-gpu where STANDIN says how.
func TestMain(m *testing.M) {
	if how := os.Getenv("STANDIN"); how != "" {
		os.Exit(standin(how, os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}

const twoGPUs = `{"driver":"550.54.15","cuda":"12.4","gpus":[
	{"index":0,"minor":1,"uuid":"GPU-aaaa","name":"NVIDIA A100","pci":"0000:3b:00.0","memory":42949672960,"used":1048576},
	{"index":1,"minor":0,"uuid":"GPU-bbbb","name":"NVIDIA A100","pci":"0000:86:00.0","memory":42949672960,"used":0,"utilization":0}]}`

// standin does what a shepherd-gpu on some machine might.
func standin(how string, args []string) int {
	say := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	switch how {
	case "well":
		if args[0] == "watch" {
			for i := range 3 {
				fmt.Printf(`{"time":"2026-01-02T03:04:0%dZ","uuid":"GPU-aaaa","used":%d,"utilization":7}`+"\n", i, i)
			}
			fmt.Println(`{"time":"2026-01-02T03:04:09Z","uuid":"GPU-bbbb","xid":{"code":79}}`)
			unix.Kill(os.Getpid(), unix.SIGSTOP)
		}
		fmt.Println(twoGPUs)
	case "arguments":
		fmt.Printf("%q", args)
	case "no driver":
		say("warming up")
		say("libnvidia-ml.so.1 was not found")
		return ExitNoDriver
	case "no driver, no word":
		return ExitNoDriver
	case "refuses":
		say("driver/library version mismatch")
		return ExitDriver
	case "crashes":
		say("shepherd-gpu: symbol lookup error: undefined symbol: nvmlDeviceGetCount_v2")
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "garbage":
		fmt.Println("<html>", strings.Repeat("x", 1000))
	case "much":
		line := strings.Repeat("x", 64<<10)
		for {
			if _, err := fmt.Print(line); err != nil {
				return 1
			}
		}
	case "chatters":
		line := strings.Repeat("x", 16<<10)
		for range 100 {
			say("%s", line)
		}
		say("the last word")
		return ExitDriver
	case "hangs":
		fmt.Fprintln(os.Stderr, "asking the driver")
		unix.Kill(os.Getpid(), unix.SIGSTOP)
	case "held":
		return held()
	case "holds":
		return hold(args[0])
	default:
		say("no such stand-in: %s", how)
		return 2
	}
	return 0
}

// held is a process that is not gone after SIGKILL, like one in a driver's
// system call that never ends: a tracer that does not care keeps it.
func held() int {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	// A tracer that Yama allows is told beforehand.
	unix.Prctl(unix.PR_SET_PTRACER, ^uintptr(0), 0, 0, 0)
	tracer := exec.Command(self, strconv.Itoa(os.Getpid()))
	tracer.Env = append(os.Environ(), "STANDIN=holds")
	tracer.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := tracer.StdoutPipe()
	if err != nil {
		panic(err)
	}
	if err := tracer.Start(); err != nil {
		panic(err)
	}
	word, _ := bufio.NewReader(out).ReadString('\n')
	if err := os.WriteFile(os.Getenv("HOLDS"), []byte(word), 0o600); err != nil {
		panic(err)
	}
	select {}
}

// hold traces every thread of a process until the test's FIFO is closed.
func hold(pid string) int {
	runtime.LockOSThread()
	threads, err := os.ReadDir(filepath.Join("/proc", pid, "task"))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for _, t := range threads {
		id, _ := strconv.Atoi(t.Name())
		if err := unix.PtraceSeize(id); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	fmt.Println("held")
	until, err := os.Open(os.Getenv("UNTIL"))
	if err != nil {
		return 1
	}
	io.Copy(io.Discard, until)
	return 0
}

// program is a shepherd-gpu that behaves in some way.
func program(t *testing.T, how string, env ...string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), HelperName)
	script := fmt.Sprintf("#!/bin/sh\n%s STANDIN='%s' exec '%s' \"$@\"\n", strings.Join(env, " "), how, self)
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}
