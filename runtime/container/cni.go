package container

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/containernetworking/cni/libcni"
	cnitypes "github.com/containernetworking/cni/pkg/types"
	cniresult "github.com/containernetworking/cni/pkg/types/100"
)

// DefaultCNIConfDir is where CNI's configuration lies by default.
const DefaultCNIConfDir = "/etc/cni/net.d"

// defaultCNIPluginDirs are where the project itself and distributions put CNI's
// plugins.
var defaultCNIPluginDirs = []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}

// cniInterface is what a container calls its side of the network.
const cniInterface = "eth0"

// networks connects containers as the machine's CNI configuration says: the
// first one of the folder, as with Kubernetes and podman.
type networks struct {
	confDir    string
	pluginDirs []string
}

// open reads the configuration. What plugins must be told again when they are to
// take a container off is kept in the folder cache.
func (n *networks) open(cache string) (*libcni.CNIConfig, *libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(n.confDir, []string{".conflist"})
	if err != nil {
		return nil, nil, fmt.Errorf("read CNI's configuration in %s: %w", n.confDir, err)
	}
	if len(files) == 0 {
		return nil, nil, fmt.Errorf("there is no CNI configuration (*.conflist) in %s: put one there, or set the sheep's network to none or host", n.confDir)
	}
	list, err := libcni.ConfListFromFile(slices.Min(files))
	if err != nil {
		return nil, nil, fmt.Errorf("read CNI's configuration %s: %w", slices.Min(files), err)
	}
	return libcni.NewCNIConfigWithCacheDir(n.pluginDirs, cache, nil), list, nil
}

// connect gives the container, whose first process is pid, its network, and
// returns what the plugins say of name servers.
func (n *networks) connect(ctx context.Context, cache, id string, pid int) (cnitypes.DNS, error) {
	cni, list, err := n.open(cache)
	if err != nil {
		return cnitypes.DNS{}, err
	}
	answer, err := cni.AddNetworkList(ctx, list, &libcni.RuntimeConf{
		ContainerID: id, NetNS: "/proc/" + strconv.Itoa(pid) + "/ns/net", IfName: cniInterface,
	})
	if err != nil {
		return cnitypes.DNS{}, fmt.Errorf("connect to the network %s: %w", list.Name, err)
	}
	result, err := cniresult.NewResultFromResult(answer)
	if err != nil {
		return cnitypes.DNS{}, fmt.Errorf("connect to the network %s: read the plugins' answer: %w", list.Name, err)
	}
	return result.DNS, nil
}

// disconnect gives back what a container had of the network; its namespace is
// gone.
func (n *networks) disconnect(ctx context.Context, cache, id string) error {
	cni, list, err := n.open(cache)
	if err != nil {
		return err
	}
	err = cni.DelNetworkList(ctx, list, &libcni.RuntimeConf{ContainerID: id, IfName: cniInterface})
	if err != nil {
		return fmt.Errorf("disconnect from the network %s: %w", list.Name, err)
	}
	return nil
}
