package testenv

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Refusal is a system call that a kernel refuses.
type Refusal struct {
	Call  uintptr
	Errno unix.Errno
	// Arg, if above 0, limits the refusal to calls whose argument of that number,
	// counted from 1, is not 0 in its low 32 bits.
	Arg int
}

// Kernel53 refuses the system calls for processes and files that are newer than Linux 5.3:
// PIDFD_NONBLOCK is from 5.10.
var Kernel53 = []Refusal{
	{Call: unix.SYS_PIDFD_OPEN, Errno: unix.EINVAL, Arg: 2},
	{Call: unix.SYS_CLOSE_RANGE, Errno: unix.ENOSYS},
	{Call: unix.SYS_OPENAT2, Errno: unix.ENOSYS},
	{Call: unix.SYS_FACCESSAT2, Errno: unix.ENOSYS},
	{Call: unix.SYS_EPOLL_PWAIT2, Errno: unix.ENOSYS},
	{Call: unix.SYS_MOUNT_SETATTR, Errno: unix.ENOSYS},
}

// KernelBefore53 is Kernel53 without pidfd_open(2).
var KernelBefore53 = append([]Refusal{{Call: unix.SYS_PIDFD_OPEN, Errno: unix.ENOSYS}}, Kernel53...)

// Refuse makes the kernel refuse system calls of this process and its children. It cannot be
// undone, so it is for processes that a test starts. System calls of other architectures are not
// refused.
func Refuse(list []Refusal) error {
	var program []unix.SockFilter
	add := func(code uint16, jt, jf uint8, k uint32) {
		program = append(program, unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k})
	}
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		result = unix.BPF_RET | unix.BPF_K
		args   = 16 // offset in struct seccomp_data
	)
	for _, r := range list {
		add(load, 0, 0, 0) // the call's number
		if r.Arg == 0 {
			add(equal, 0, 1, uint32(r.Call))
		} else {
			add(equal, 0, 3, uint32(r.Call))
			add(load, 0, 0, uint32(args+8*(r.Arg-1)))
			add(equal, 1, 0, 0)
		}
		add(result, 0, 0, unix.SECCOMP_RET_ERRNO|uint32(r.Errno))
	}
	add(result, 0, 0, unix.SECCOMP_RET_ALLOW)
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&filter)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}
