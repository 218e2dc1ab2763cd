package job

// Nearness orders how soon a sheep or a node can run jobs of a model: a larger value is
// sooner.
type Nearness int

// The values of Nearness.
const (
	ModelAway   Nearness = iota // the model has to be fetched
	ModelOnDisk                 // it has to be loaded
	ModelLoaded                 // a runner has it
)
