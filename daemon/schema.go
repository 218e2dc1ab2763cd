package daemon

import (
	"github.com/iterait/shepherd/config"
	"github.com/iterait/shepherd/docs"
	"github.com/iterait/shepherd/runtime/bare"
	"github.com/iterait/shepherd/runtime/container"
)

// ConfigSchema returns a JSON Schema of the configuration file.
func ConfigSchema() ([]byte, error) {
	types := map[string]any{"bare": new(bare.Options), "docker": new(container.Options)}
	for alias, name := range typeAliases() {
		types[alias] = types[name]
	}
	return config.Schema(types, docs.Configuration())
}
