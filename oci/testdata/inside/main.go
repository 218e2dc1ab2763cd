// Inside is a program that a test runs in a container. It writes a report about the
// container to the file $REPORT.
package main

import (
	"encoding/json"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

type report struct {
	UID, GID   int
	Groups     []int
	Args, Env  []string
	Dir, Host  string
	Status     map[string]string // of /proc/self/status
	Mounts     map[string]string // target to options
	Interfaces []string
	Dials      map[string]string // address to error
	Files      syscall.Rlimit
	Core       syscall.Rlimit
	Namespaces map[string]string
	Pids       []string
	Tried      map[string]string // what was tried to its error
	Memory     string
	Devices    []string
}

func main() {
	r := report{
		UID: os.Getuid(), GID: os.Getgid(), Args: os.Args, Env: os.Environ(),
		Status: map[string]string{}, Mounts: map[string]string{}, Dials: map[string]string{},
		Namespaces: map[string]string{}, Tried: map[string]string{},
	}
	r.Groups, _ = os.Getgroups()
	r.Dir, _ = os.Getwd()
	r.Host, _ = os.Hostname()
	for _, line := range lines("/proc/self/status") {
		if k, v, ok := strings.Cut(line, ":"); ok {
			r.Status[k] = strings.TrimSpace(v)
		}
	}
	for _, line := range lines("/proc/self/mountinfo") {
		if f := strings.Fields(line); len(f) > 5 {
			r.Mounts[f[4]] = f[5]
		}
	}
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		r.Interfaces = append(r.Interfaces, i.Name)
	}
	for _, address := range strings.Fields(os.Getenv("DIAL")) {
		conn, err := net.DialTimeout("tcp", address, 2*time.Second)
		r.Dials[address] = text(err)
		if err == nil {
			conn.Close()
		}
	}
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r.Files)
	syscall.Getrlimit(syscall.RLIMIT_CORE, &r.Core)
	for _, name := range []string{"pid", "ipc", "uts", "mnt", "net", "cgroup"} {
		r.Namespaces[name], _ = os.Readlink("/proc/self/ns/" + name)
	}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if strings.Trim(e.Name(), "0123456789") == "" {
			r.Pids = append(r.Pids, e.Name())
		}
	}
	entries, _ = os.ReadDir("/dev")
	for _, e := range entries {
		r.Devices = append(r.Devices, e.Name())
	}
	try := func(what string, err error) { r.Tried[what] = text(err) }
	try("write /", os.WriteFile("/written", nil, 0o600))
	try("write /tmp", os.WriteFile("/tmp/written", nil, 0o600))
	try("write /scratch", os.WriteFile("/scratch/written", nil, 0o600))
	try("write /proc/sys", os.WriteFile("/proc/sys/kernel/hostname", []byte("x"), 0))
	try("write /host", os.WriteFile("/host/written", nil, 0o600))
	try("write /host-ro", os.WriteFile("/host-ro/written", nil, 0o600))
	try("mknod", syscall.Mknod("/dev/sda", syscall.S_IFBLK|0o600, 8<<8))
	try("mount", syscall.Mount("none", "/mnt", "tmpfs", 0, ""))
	try("unshare", syscall.Unshare(syscall.CLONE_NEWUSER))
	for _, path := range []string{"/proc/kcore", "/proc/interrupts"} { // masked files are there, and empty
		f, err := os.Open(path)
		if err == nil {
			_, err = f.Read(make([]byte, 1))
			f.Close()
		}
		try("read "+path, err)
	}
	raw, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_ICMP)
	if err == nil {
		syscall.Close(raw)
	}
	try("raw socket", err)
	_, _, errno := syscall.Syscall(syscall.SYS_KEXEC_LOAD, 0, 0, 0)
	try("kexec", errno)
	for _, name := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		if data, err := os.ReadFile(name); err == nil {
			r.Memory = strings.TrimSpace(string(data))
		}
	}
	data, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(os.Getenv("REPORT"), data, 0o666)
	}
	if err != nil {
		os.Stderr.WriteString(err.Error())
		os.Exit(1)
	}
}

func text(err error) string {
	if err == nil || err == syscall.Errno(0) {
		return ""
	}
	return err.Error()
}

func lines(path string) []string {
	data, _ := os.ReadFile(path)
	return strings.Split(string(data), "\n")
}
