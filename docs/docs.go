// Package docs holds the documents that the programs carry.
package docs

import _ "embed"

//go:embed configuration.md
var configuration string

// Configuration is configuration.md, the reference of the configuration file.
func Configuration() string { return configuration }
