package container

import (
	"strings"

	"github.com/iterait/shepherd/oci"
	"github.com/iterait/shepherd/shim"
)

// The labels of a container and its snapshot: the sheep and node that they belong
// to, and the model that runs in them.
const (
	labelSheep   = "io.shepherd.sheep"
	labelModel   = "io.shepherd.model"
	labelVersion = "io.shepherd.version"
	labelNode    = "io.shepherd.node"
	labelLife    = "io.shepherd.life"
	labelNetwork = "io.shepherd.network" // "cni" where CNI plugins connected the container
)

func labels(node string, spec shim.Spec) map[string]string {
	l := map[string]string{
		labelSheep: spec.Sheep, labelModel: spec.Model.Name, labelVersion: spec.Model.Version,
		labelNode: node, labelLife: spec.Life,
	}
	if spec.Container.CNI {
		l[labelNetwork] = string(oci.NetworkCNI)
	}
	return l
}

// lifeDigits is how many digits of a life's id are in the container's id: containerd
// allows 76 characters, and a sheep's name has up to 63.
const lifeDigits = 12

// containerID is the sheep's name and the first digits of the life's id, as words
// joined by "-": containerd allows letters and digits, with single characters of
// "._-" between them.
func containerID(sheep, life string) string {
	words := strings.FieldsFunc(sheep, func(r rune) bool { return strings.ContainsRune("._-", r) })
	return strings.Join(append(words, life[:min(len(life), lifeDigits)]), "-")
}
