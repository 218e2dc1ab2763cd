// Package model reads the digit classifier from a model directory: a config.yaml, which names a
// file with the weights of the network.
package model

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/goccy/go-yaml"

	"github.com/iterait/shepherd/examples/digits/data"
	"github.com/iterait/shepherd/examples/digits/nn"
)

// NewNetwork returns the untrained network: two convolutions, each followed by
// pooling, and two dense layers, after LeNet-5 (LeCun et al., 1998).
func NewNetwork(rng *rand.Rand) *nn.Network {
	const hidden = 64
	image := nn.Shape{Channels: 1, Height: data.Side, Width: data.Side}
	conv1 := nn.NewConv("conv1", image, 12, true, rng)
	pool1 := nn.NewMaxPool(conv1.Out())
	conv2 := nn.NewConv("conv2", pool1.Out(), 24, false, rng)
	pool2 := nn.NewMaxPool(conv2.Out())
	features := pool2.Out().Len()
	return nn.NewNetwork(data.Classes,
		conv1, pool1, nn.NewReLU(pool1.Out().Len()),
		conv2, pool2, nn.NewReLU(features),
		nn.NewDense("dense1", features, hidden, rng), nn.NewReLU(hidden),
		nn.NewDense("dense2", hidden, data.Classes, rng),
	)
}

// Config is a model's config.yaml.
type Config struct {
	// Weights is the path of the weights file, relative to config.yaml and
	// below its folder.
	Weights string `yaml:"weights"`
}

// Classifier classifies images of digits. One goroutine at a time may use it.
type Classifier struct {
	network *nn.Network
	input   [data.Pixels]float32
}

// Prediction is the most probable digit of an image.
type Prediction struct {
	Digit      int
	Confidence float64 // its probability, 0 to 1
}

// NewClassifier returns a classifier that uses this network.
func NewClassifier(network *nn.Network) *Classifier {
	return &Classifier{network: network}
}

// ConfigFile is the name of a model's config in its folder.
const ConfigFile = "config.yaml"

// Open loads the model of a config. path is that of the file or of its folder; empty is the
// working directory. An unknown key is an error. Errors name the file.
func Open(configPath string) (*Classifier, error) {
	if info, err := os.Stat(filepath.Clean(configPath)); err == nil && info.IsDir() {
		configPath = filepath.Join(configPath, ConfigFile)
	}
	config, err := readConfig(configPath)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(filepath.Dir(configPath), config.Weights)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the weights named by %s: %w", configPath, err)
	}
	defer f.Close()
	network := NewNetwork(rand.New(rand.NewPCG(0, 0))) // all weights are replaced below
	if err := network.Load(f); err != nil {
		return nil, fmt.Errorf("load %s: %w", path, err)
	}
	return NewClassifier(network), nil
}

func readConfig(path string) (Config, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, fmt.Errorf("open the model's config: %w (a runner is started with the path of config.yaml, relative to its working directory)", err)
	}
	if err != nil {
		return Config{}, fmt.Errorf("read the model's config: %w", err)
	}
	return parseConfig(path, b)
}

// parseConfig parses one YAML document; path is for errors.
func parseConfig(path string, b []byte) (Config, error) {
	var c Config
	decoder := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict())
	if err := decoder.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, fmt.Errorf("%s: %s", path, yaml.FormatError(err, false, false)) // [line:column] problem
	}
	if err := decoder.Decode(new(any)); !errors.Is(err, io.EOF) {
		return Config{}, fmt.Errorf("%s: more than one document, expected one", path)
	}
	if c.Weights == "" {
		return Config{}, fmt.Errorf("%s: weights is missing: name the weights file, as in `weights: weights.bin`", path)
	}
	if !filepath.IsLocal(c.Weights) {
		return Config{}, fmt.Errorf("%s: weights: %q is not a path below the config's folder", path, c.Weights)
	}
	return c, nil
}

// Classify returns the most probable digit of m. It does not allocate.
func (c *Classifier) Classify(m *data.Image) Prediction {
	m.Floats(&c.input)
	probs := c.network.Predict(c.input[:])
	digit := nn.Best(probs)
	return Prediction{Digit: digit, Confidence: float64(probs[digit])}
}
