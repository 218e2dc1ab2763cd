package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/config/size"
	"github.com/iterait/shepherd/daemon"
	"github.com/iterait/shepherd/gpu"
	"github.com/iterait/shepherd/image"
	"github.com/iterait/shepherd/internal/durable"
	"github.com/iterait/shepherd/internal/errtext"
	"github.com/iterait/shepherd/runtime/container"
)

// askTime bounds each question to the machine.
const askTime = 10 * time.Second

func initCommand() *cobra.Command {
	var force bool
	var registry, dir string
	c := &cobra.Command{
		Use:   "init [FILE]",
		Short: "Write a configuration for this machine",
		Long: "Detects the machine's GPUs, containerd, free ports and disks, and writes a commented\n" +
			"configuration to FILE, by default shepherd.yml; `-` is standard output. It has a sheep\n" +
			"for each GPU: a container sheep if containerd is running and --registry names the\n" +
			"registry of its images, otherwise a bare sheep. Nothing else is changed, and no file\n" +
			"is overwritten without --force.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return &usageError{errors.New("init takes the name of one file")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, os.Interrupt)
			defer stop()
			file := usualConfig
			if len(args) > 0 {
				file = args[0]
			}
			if dir == "" {
				dir = usualDir()
			}
			dir, err := filepath.Abs(dir)
			if err != nil {
				return fmt.Errorf("the directory for state and data: %w", err)
			}
			text := newConfig(survey(ctx, dir), registry)
			if ctx.Err() != nil {
				return errors.New("interrupted; nothing was written")
			}
			if file == "-" {
				_, err := fmt.Fprint(cmd.OutOrStdout(), text)
				return err
			}
			if err := writeConfig(file, text, force); err != nil {
				return err
			}
			if _, err := daemon.LoadConfig(file); err != nil {
				return fmt.Errorf("%s was written, and needs a change: %w", file, err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Wrote %s. Look it over, then:\n  %[2]s doctor -c %[1]s\n  %[2]s -c %[1]s\n"+
				"and in another terminal:\n  %[2]s submit MODEL FILE -c %[1]s\n", file, cmd.Root().Name())
			return nil
		},
	}
	c.Flags().BoolVar(&force, "force", false, "replace the file if it is there")
	c.Flags().StringVar(&registry, "registry", "", "address of the registry that images of container sheep come from")
	c.Flags().StringVar(&dir, "dir", "", "directory for state, data and models (default /var/lib/shepherd, or for other users than root one of their own)")
	return c
}

// usualDir is where the daemon keeps what it has, by the user who runs it.
func usualDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/shepherd"
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "shepherd")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "."
	}
	return filepath.Join(home, ".local/state/shepherd")
}

// writeConfig writes a file that is not there yet or, with force, whatever is there.
func writeConfig(file, text string, force bool) error {
	const mode = 0o640 // tokens may be added to it later
	if force {
		if err := durable.WriteFile(file, []byte(text), mode); err != nil {
			return fmt.Errorf("write the configuration: %w", err)
		}
		return nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already; --force replaces it", file)
	}
	if err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	return nil
}

// machine is what init has found.
type machine struct {
	dir    string // for state and data
	gpus   []gpu.GPU
	driver string
	noGPUs error // why it is not known which there are; nil where that is known
	// containerd is its version; empty where noContainerd says why it cannot be used.
	containerd   string
	noContainerd error
	api, storage int // ports that are free
	free         int64
	disks        []disk // that have more room
}

// disk is a file system.
type disk struct {
	path string
	free int64 // bytes
}

// survey asks the machine.
func survey(ctx context.Context, dir string) machine {
	m := machine{dir: dir, free: freeAt(dir)}
	asking, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if known, err := gpu.NewHelper(gpu.HelperConfig{}).Inventory(asking); err != nil {
		m.noGPUs = err
	} else {
		m.gpus, m.driver = known.GPUs, known.Driver
	}
	m.containerd, m.noContainerd = askContainerd(asking)
	m.api = freePort(5000)
	m.storage = freePort(7000)
	m.disks = roomier(m.free)
	return m
}

func askContainerd(ctx context.Context) (version string, err error) {
	client, err := image.Connect(ctx, container.DefaultAddress, container.DefaultNamespace, nil)
	if err != nil {
		return "", err
	}
	defer client.Close()
	v, err := client.Version(ctx)
	return v.Version, err
}

// freePort returns the first port from one on that is free on this machine.
func freePort(from int) int {
	for port := from; port < from+100; port++ {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			l.Close()
			return port
		}
	}
	return from // the daemon will say who has it
}

// freeAt is how many bytes are free where path is, or will be; 0 where that is not known.
func freeAt(path string) int64 {
	for {
		var stat syscall.Statfs_t
		err := syscall.Statfs(path, &stat)
		if err == nil {
			return int64(stat.Bavail) * stat.Bsize
		}
		parent := filepath.Dir(path)
		if !errors.Is(err, syscall.ENOENT) || parent == path {
			return 0
		}
		path = parent
	}
}

// local are the types of file systems that are on disks of the machine.
var local = []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs"}

// roomier are the machine's disks with twice as much room, the largest first.
func roomier(than int64) []disk {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !slices.Contains(local, m.FSType) || slices.Contains(strings.Split(m.Options, ","), "ro"), false
	})
	if err != nil {
		return nil
	}
	var disks []disk
	for _, m := range mounts {
		info, err := os.Stat(m.Mountpoint)
		if err != nil || !info.IsDir() { // a file that is mounted into a container
			continue
		}
		if free := freeAt(m.Mountpoint); free > 2*than {
			disks = append(disks, disk{m.Mountpoint, free})
		}
	}
	slices.SortStableFunc(disks, func(a, b disk) int { return cmp.Compare(b.free, a.free) })
	return disks[:min(len(disks), 3)]
}

// newConfig is a configuration for the machine, with comments.
func newConfig(m machine, registry string) string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	say("# The configuration of shepherdd, made for this machine by `shepherdd init`. After a change:")
	say("#")
	say("#   shepherdd config check FILE   # says what is wrong, with line and column")
	say("#   shepherdd reload              # says what is in effect and what needs a restart")
	say("#")
	say("# docs/configuration.md describes every key.")
	say("")
	free := ""
	if m.free > 0 {
		free = " " + size.Text(m.free) + " are free there."
	}
	say("# What has to survive a restart, and the working files of running jobs.%s", free)
	for _, d := range m.disks {
		say("# %s has %s: data_root or storage.path may be on it.", d.path, size.Text(d.free))
	}
	say("state_dir: %s", quoted(m.dir))
	say("data_root: %s", quoted(filepath.Join(m.dir, "data")))
	say("")
	say("# Only this machine is let in. Before you open it to others (host: 0.0.0.0), give them")
	say("# tokens: `shepherdd token new` makes one, with the lines to put here.")
	say("api:")
	say("  host: 127.0.0.1")
	say("  port: %d", m.api)
	say("  cors_origins: []   # web pages whose scripts may call, such as https://app.example.com")
	say("")
	say("# Inputs and results of jobs: an S3 server in the daemon, with a pair of keys that it makes")
	say("# and keeps in storage/credentials below state_dir. With `url`, `access_key` and")
	say("# `secret_key_file` another S3 server is used.")
	say("storage:")
	say("  listen: 127.0.0.1:%d", m.storage)
	say("")
	images := m.containerd != "" && registry != ""
	say("# Where the images of container sheep come from.")
	if registry != "" {
		say("registry:")
		say("  url: %s", quoted(registry))
	} else {
		say("#registry:")
		say("#  url: https://registry.example.com")
	}
	say("")
	switch {
	case m.noGPUs != nil:
		say("# GPUs: none is known (%s).", oneLine(m.noGPUs))
	case len(m.gpus) == 0:
		say("# GPUs: there are none.")
	default:
		say("# GPUs, with the driver %s: each has a sheep of its own below.", m.driver)
	}
	if m.containerd != "" {
		say("# containerd: %s.", m.containerd)
	} else {
		say("# containerd: it cannot be used (%s).", oneLine(m.noContainerd))
	}
	say("sheep:")
	say("  # A bare sheep runs models as processes: NAME:VERSION is the directory")
	say("  # working_directory/NAME/VERSION with a config.yaml in it. A container sheep (type: docker)")
	say("  # runs each model as a container of the registry's image NAME:VERSION; it needs containerd,")
	say("  # runc and `registry`.")
	kind := func(indent string) {
		if images {
			say("%stype: docker", indent)
		} else {
			say("%stype: bare", indent)
			say("%sworking_directory: %s", indent, quoted(filepath.Join(m.dir, "models")))
		}
	}
	sheep := 0
	add := func(name, about, device string) {
		sheep++
		say("  %s:%s", name, about)
		kind("    ")
		if device != "" {
			say("    devices: [%s]", quoted(device))
		}
	}
	for _, g := range m.gpus {
		if !g.MIGMode {
			add(fmt.Sprintf("gpu_%d", g.Index), fmt.Sprintf("   # %s, %s", clean(g.Name), size.Text(int64(g.Memory))), fmt.Sprintf("/dev/nvidia%d", g.Minor))
			continue
		}
		for _, part := range g.MIG {
			add(fmt.Sprintf("gpu_%d_%d", g.Index, part.Index), "   # a MIG instance of "+clean(g.Name), fmt.Sprintf("nvidia.com/gpu=%d:%d", g.Index, part.Index))
		}
	}
	if sheep == 0 {
		add("sheep_1", "", "")
	}
	if !images {
		say("  #sheep_2:")
		say("  #  type: docker")
		say("  #  memory: 16GiB")
	}
	return b.String()
}

// quoted is text as YAML has it between quotes.
func quoted(text string) string { return strconv.Quote(text) }

// oneLine is an error in one line.
func oneLine(err error) string { return clean(errtext.Of(err)) }

// clean is text without control characters.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
}
