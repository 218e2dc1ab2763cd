package job

// Nearness is how soon a sheep or a node can run jobs of a model: the greater, the sooner.
type Nearness int

// The kinds of nearness.
const (
	ModelAway   Nearness = iota // the model has to be fetched
	ModelOnDisk                 // it has to be loaded
	ModelLoaded                 // a runner has it
)
