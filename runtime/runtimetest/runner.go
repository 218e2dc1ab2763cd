package runtimetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/messenger"
	"github.com/iterait/shepherd/messenger/zmq"
)

// RunnerMain is the main function of the scripted runner, which is called as
//
//	runner -p PORT NAME/VERSION/config.yaml
//
// It executes scripts with one command a line: config.yaml when it starts, and inputs/input
// for each job. It never returns.
//
//	sleep DURATION    wait
//	await PATH        wait until the file exists
//	exit CODE         end the process
//	signal NAME       send itself a signal ("SIGKILL")
//	ignore TERM       ignore SIGTERM
//	quit SIGNAL CODE  end with the code when the signal comes
//	tell              write a report about the process and its environment to outputs/told
//	keep TEXT         write the text to outputs/kept
//	fork              start a process that leaves the group, session and parent
//	print TEXT        write a line to standard output
//	flood BYTES       write that much to standard output
//	allocate MIB      use memory
//	starve MIB        have a child use memory until it is killed
//	expect NAME=VALUE end with an error unless the environment has that once
//	holds PATH TEXT   end with an error unless the file holds the text
//	write PATH        end with an error unless the file can be written
//	readonly PATH     end with an error unless its file system is read-only
//	reach NET ADDR    end with an error unless NET ADDR can be dialed
//	miss NET ADDR     end with an error if it can
//	serve HTTP        (config) accept connections and answer nonsense
//	reply             answer that the job is done; also the default at the end
//	reply garbage     send what is not a message
//	reply for ID      answer for another job
//	reply as JSON     send that frame
//	error TYPE        answer that the job failed
//	silence           do not answer at the end
//	unbind            close all connections, bind again and do not answer
//
// A job that is done has the runner's random number, and how many jobs the runner has
// processed, in outputs/output.
func RunnerMain(args []string) {
	switch {
	case len(args) == 1 && args[0] == sleeper:
		time.Sleep(time.Hour)
		os.Exit(0)
	case len(args) == 2 && args[0] == hungry:
		mib, err := strconv.Atoi(args[1])
		if err != nil {
			os.Exit(2)
		}
		allocate(mib)
		os.Exit(0)
	case len(args) == 1 && args[0] == forker:
		if err := start(sleeper).Start(); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	if err := runRunner(args); err != nil {
		fmt.Fprintln(os.Stderr, "runner:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// The arguments with which the program runs as one of its helpers.
const (
	sleeper = "sleeper"
	forker  = "forker" // starts a sleeper and ends
	hungry  = "hungry" // uses as much memory, in MiB, as the next argument says
)

type scripted struct {
	ctx    context.Context
	self   int // random number of the runner
	port   string
	router *zmq.Router
	peer   *zmq.Peer
	job    job.ID
	root   string // io_data_root
	jobs   int
	quiet  bool
}

func runRunner(args []string) error {
	if len(args) != 3 || args[0] != "-p" {
		return fmt.Errorf("called with %q, expected -p PORT CONFIG", args)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	r := &scripted{ctx: ctx, self: rand.Int(), port: args[1]}
	script, err := os.ReadFile(args[2])
	if err != nil {
		return err
	}
	if err := r.obey(string(script)); err != nil {
		return err
	}
	if err := r.bind(); err != nil {
		return err
	}
	for {
		m, err := r.router.Recv(r.ctx)
		if err != nil {
			return nil // SIGTERM
		}
		in, err := messenger.DecodeInput(m.Frame)
		if err != nil {
			return err
		}
		r.peer, r.job, r.root, r.quiet = m.From, in.JobID, in.IODataRoot, false
		r.jobs++
		if err := r.process(); err != nil {
			return err
		}
	}
}

func (r *scripted) bind() error {
	router, err := zmq.Listen(r.ctx, zmq.RouterConfig{Endpoint: "tcp://0.0.0.0:" + r.port, Identity: "runner"})
	r.router = router
	return err
}

func (r *scripted) process() error {
	dir := filepath.Join(r.root, string(r.job))
	script, err := os.ReadFile(filepath.Join(dir, job.InputDir, job.DefaultInput))
	if err != nil {
		return err
	}
	if err := r.obey(string(script)); err != nil || r.quiet {
		return err
	}
	text := fmt.Sprintf("%d %d", r.self, r.jobs)
	if err := os.WriteFile(filepath.Join(dir, job.OutputDir, job.DefaultOutput), []byte(text), 0o644); err != nil {
		return err
	}
	return r.answer(messenger.Answer{JobID: r.job})
}

func (r *scripted) answer(a messenger.Answer) error {
	frame, err := messenger.EncodeAnswer(a)
	if err != nil {
		return err
	}
	return r.send(frame)
}

// send sends an answer to the job's sender. It ignores that the sender has disconnected.
func (r *scripted) send(frame []byte) error {
	if err := r.router.Send(r.ctx, r.peer, frame); err != nil && !errors.Is(err, messenger.ErrClosed) {
		return err
	}
	return nil
}

func (r *scripted) obey(script string) error {
	for line := range strings.Lines(script) {
		words := strings.SplitN(strings.TrimSpace(line), " ", 2)
		if words[0] == "" {
			continue
		}
		rest := ""
		if len(words) == 2 {
			rest = words[1]
		}
		if err := r.do(words[0], rest); err != nil {
			return fmt.Errorf("%s: %w", line, err)
		}
	}
	return nil
}

func (r *scripted) do(verb, rest string) error {
	switch verb {
	case "sleep":
		d, err := time.ParseDuration(rest)
		time.Sleep(d)
		return err
	case "await":
		for {
			if _, err := os.Stat(rest); err == nil {
				return nil
			}
			time.Sleep(5 * time.Millisecond)
		}
	case "exit":
		code, err := strconv.Atoi(rest)
		if err != nil {
			return err
		}
		os.Exit(code)
	case "signal":
		if err := unix.Kill(os.Getpid(), unix.SignalNum(rest)); err != nil {
			return err
		}
		time.Sleep(time.Minute) // it arrives in a moment
	case "ignore":
		signal.Ignore(unix.SIGTERM)
		r.ctx = context.Background()
	case "quit":
		name, code, _ := strings.Cut(rest, " ")
		n, err := strconv.Atoi(code)
		if err != nil {
			return err
		}
		came := make(chan os.Signal, 1)
		signal.Notify(came, unix.SignalNum(name))
		go func() {
			<-came
			os.Exit(n)
		}()
	case "tell":
		return os.WriteFile(filepath.Join(r.root, string(r.job), job.OutputDir, "told"), []byte(tell()), 0o644)
	case "keep":
		return os.WriteFile(filepath.Join(r.root, string(r.job), job.OutputDir, "kept"), []byte(rest), 0o644)
	case "fork":
		return fork()
	case "print":
		fmt.Println(rest)
	case "flood":
		n, err := strconv.Atoi(rest)
		if err != nil {
			return err
		}
		line := append(bytes.Repeat([]byte("x"), 99), '\n')
		for ; n > 0; n -= len(line) {
			os.Stdout.Write(line)
		}
	case "allocate":
		mib, err := strconv.Atoi(rest)
		if err != nil {
			return err
		}
		allocate(mib)
	case "starve":
		err := exec.Command("/proc/self/exe", hungry, rest).Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
			return fmt.Errorf("the child ended with %v", err)
		}
	case "expect":
		name, _, _ := strings.Cut(rest, "=")
		same := slices.DeleteFunc(os.Environ(), func(v string) bool { return !strings.HasPrefix(v, name+"=") })
		if len(same) != 1 || same[0] != rest {
			return fmt.Errorf("the environment has %q, expected %q", same, rest)
		}
	case "holds":
		path, text, _ := strings.Cut(rest, " ")
		data, err := os.ReadFile(path)
		if err == nil && !strings.Contains(string(data), text) {
			err = fmt.Errorf("it holds %q", data)
		}
		return err
	case "write":
		return os.WriteFile(rest, nil, 0o644)
	case "readonly":
		if err := os.WriteFile(rest, nil, 0o644); !errors.Is(err, unix.EROFS) {
			return fmt.Errorf("it is not read-only: %v", err)
		}
	case "reach":
		return dial(rest)
	case "miss":
		if err := dial(rest); err == nil {
			return errors.New("it can be reached")
		}
	case "serve":
		return serveNonsense(r.port)
	case "reply":
		return r.reply(rest)
	case "error":
		r.quiet = true
		return r.answer(messenger.Answer{JobID: r.job, Failure: &job.Failure{
			Message: rest + ": 'key'", Type: "<class '" + rest + "'>", Traceback: "['  File \"model.py\", line 1']",
		}})
	case "silence":
		r.quiet = true
	case "unbind":
		r.quiet = true
		if err := r.router.Close(); err != nil {
			return err
		}
		return r.bind()
	default:
		return errors.New("unknown command")
	}
	return nil
}

func allocate(mib int) {
	data := make([]byte, mib<<20)
	for i := 0; i < len(data); i += 4096 {
		data[i] = 1
	}
	time.Sleep(time.Minute)
	_ = data[len(data)-1]
}

// tell reports about this process and its environment, one fact a line.
func tell() string {
	groups, _ := os.Getgroups()
	cwd, _ := os.Getwd()
	first, _ := os.ReadFile("/proc/1/comm")
	writable := func(dir string) string {
		f, err := os.CreateTemp(dir, "probe")
		if err != nil {
			return "no: " + innermost(err).Error()
		}
		defer os.Remove(f.Name())
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return "no: " + err.Error()
		}
		return fmt.Sprintf("yes, as group %d", info.Sys().(*syscall.Stat_t).Gid)
	}
	return fmt.Sprintf("user %d, group %d, groups %v\nworking directory %s, home %s\nfirst process %s\nvariables %d\nwritable: its own %s; / %s; /tmp %s; /dev/shm %s\n",
		os.Getuid(), os.Getgid(), groups, cwd, os.Getenv("HOME"), strings.TrimSpace(string(first)), len(os.Environ()),
		writable(cwd), writable("/"), writable("/tmp"), writable("/dev/shm"))
}

func innermost(err error) error {
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(err) {
		err = next
	}
	return err
}

func dial(rest string) error {
	network, address, _ := strings.Cut(rest, " ")
	if network == "dns" {
		_, err := net.LookupHost(address)
		return err
	}
	conn, err := net.DialTimeout(network, address, 2*time.Second)
	if err == nil {
		conn.Close()
	}
	return err
}

func (r *scripted) reply(rest string) error {
	kind, arg, _ := strings.Cut(rest, " ")
	switch kind {
	case "":
		return r.answer(messenger.Answer{JobID: r.job})
	case "garbage":
		return r.send([]byte("\x00\xff not a message"))
	case "for":
		return r.answer(messenger.Answer{JobID: job.ID(arg)})
	case "as":
		return r.send([]byte(arg))
	}
	return errors.New("unknown command")
}

// fork leaves a daemonized process behind: in a session of its own, and orphaned.
func fork() error { return start(forker).Run() }

func start(role string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", role)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}
