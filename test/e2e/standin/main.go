// Command standin takes shepherd-gpu's place in tests, on a machine without a
// GPU. It reads its reports from the folder $STANDIN_GPUS:
//
//	gpus.json  the gpu.Inventory
//	xids       lines UUID CODE; lines added during a watch are reported
//	mode       "crash": it crashes; "hang": it never answers
//
// A runner of the same test that is to use a GPU, as CUDA_VISIBLE_DEVICES says,
// has 10 GiB on it.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/gpu"
)

const takes = 10 << 30

func main() {
	dir := os.Getenv("STANDIN_GPUS")
	print := json.NewEncoder(os.Stdout)
	switch os.Args[1] {
	case "inventory":
		obey(dir)
		check(print.Encode(inventory(dir)))
	case "watch":
		told := len(xids(dir))
		for ; ; time.Sleep(50 * time.Millisecond) {
			obey(dir)
			for _, g := range inventory(dir).GPUs {
				check(print.Encode(gpu.Sample{Time: time.Now(), UUID: g.UUID, State: &g.State}))
			}
			all := xids(dir)
			for _, line := range all[told:] {
				uuid, code, _ := strings.Cut(line, " ")
				n, err := strconv.ParseUint(code, 10, 64)
				check(err)
				check(print.Encode(gpu.Sample{Time: time.Now(), UUID: uuid, Xid: &gpu.Xid{Code: n}}))
			}
			told = len(all)
		}
	default:
		fmt.Fprintf(os.Stderr, "no command %q\n", os.Args[1])
		os.Exit(2)
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// obey executes the mode.
func obey(dir string) {
	mode, _ := os.ReadFile(filepath.Join(dir, "mode"))
	switch strings.TrimSpace(string(mode)) {
	case "crash":
		panic("the driver is broken")
	case "hang":
		select {}
	}
}

// xids are the whole lines of the file.
func xids(dir string) []string {
	text, _ := os.ReadFile(filepath.Join(dir, "xids"))
	lines := strings.Split(string(text), "\n")
	return lines[:len(lines)-1]
}

// inventory returns that of the file, with the memory of runners.
func inventory(dir string) gpu.Inventory {
	var inv gpu.Inventory
	text, err := os.ReadFile(filepath.Join(dir, "gpus.json"))
	check(err)
	check(json.Unmarshal(text, &inv))
	for i := range inv.GPUs {
		g := &inv.GPUs[i]
		for pid, visible := range runners(dir) {
			if slices.Contains(visible, g.UUID) || slices.Contains(visible, strconv.Itoa(g.Index)) {
				g.Processes = append(g.Processes, gpu.Process{PID: pid, Used: takes})
			}
		}
		for _, p := range g.Processes {
			g.Used += p.Used
		}
	}
	return inv
}

// runners are the processes of this test that are to use GPUs, and which.
func runners(dir string) map[int][]string {
	found := make(map[int][]string)
	processes, err := filepath.Glob("/proc/[0-9]*/environ")
	check(err)
	for _, path := range processes {
		environ, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var visible []string
		ours := false
		for entry := range bytes.SplitSeq(environ, []byte{0}) {
			name, value, _ := strings.Cut(string(entry), "=")
			switch name {
			case "CUDA_VISIBLE_DEVICES":
				visible = strings.Split(value, ",")
			case "STANDIN_GPUS":
				ours = value == dir
			}
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil && ours && len(visible) > 0 {
			found[pid] = visible
		}
	}
	return found
}
