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

// DefaultCNIConfDir is the default directory of CNI's configuration.
const DefaultCNIConfDir = "/etc/cni/net.d"

// defaultCNIPluginDirs are the directories where the CNI project and Linux
// distributions install CNI's plugins.
var defaultCNIPluginDirs = []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}

// cniInterface is the name of the network interface in the container.
const cniInterface = "eth0"

// networks connects containers to the network of the machine's CNI configuration:
// the first by name in confDir, as Kubernetes and podman choose it.
type networks struct {
	confDir    string
	pluginDirs []string
}

// open reads the configuration. In the directory cache libcni keeps the plugins'
// results, which the plugins need again when a container is disconnected.
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

// connect connects the container whose first process is pid to the network, and
// returns the name servers in the plugins' result.
func (n *networks) connect(ctx context.Context, cache, id string, pid int) (cnitypes.DNS, error) {
	cni, list, err := n.open(cache)
	if err != nil {
		return cnitypes.DNS{}, err
	}
	added, err := cni.AddNetworkList(ctx, list, &libcni.RuntimeConf{
		ContainerID: id, NetNS: "/proc/" + strconv.Itoa(pid) + "/ns/net", IfName: cniInterface,
	})
	if err != nil {
		return cnitypes.DNS{}, fmt.Errorf("connect to the network %s: %w", list.Name, err)
	}
	result, err := cniresult.NewResultFromResult(added)
	if err != nil {
		return cnitypes.DNS{}, fmt.Errorf("connect to the network %s: read the plugins' result: %w", list.Name, err)
	}
	return result.DNS, nil
}

// disconnect releases what the plugins allocated for a container, such as its
// address. The container's network namespace need not exist any more.
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
