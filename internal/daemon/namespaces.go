package daemon

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// APINamespace is a namespace of layers of the API.
type APINamespace struct {
	Name        string   `toml:"name"`
	Users       []string `toml:"users"`  // members, by name or number
	Groups      []string `toml:"groups"` // groups of members, by name or number
	Readable    []string `toml:"readable"`
	MaxLayers   int      `toml:"max_layers"`
	MaxBytes    string   `toml:"max_bytes"`
	MaxLifetime Duration `toml:"max_lifetime"`
}

var namespaceName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{0,62}$`)

// checkNamespaces reports all mistakes in namespaces.
func checkNamespaces(namespaces []APINamespace) error {
	var errs []error
	names := make(map[string]bool)
	for _, n := range namespaces {
		if err := n.check(); err != nil {
			errs = append(errs, fmt.Errorf("namespace %q: %w", n.Name, err))
		}
		if names[n.Name] {
			errs = append(errs, fmt.Errorf("namespace %q is listed twice", n.Name))
		}
		names[n.Name] = true
	}
	return errors.Join(errs...)
}

func (n APINamespace) check() error {
	switch {
	case !namespaceName.MatchString(n.Name):
		return errors.New("the name must have 1 to 63 letters, digits, _ and -, with a letter or digit first")
	case len(n.Users)+len(n.Groups) == 0:
		return errors.New("it has neither users nor groups")
	case n.MaxLayers < 0:
		return fmt.Errorf("max_layers %d must be at least 0", n.MaxLayers)
	case n.MaxLifetime.Duration < 0:
		return fmt.Errorf("max_lifetime %s must be at least 0", n.MaxLifetime.Duration)
	}
	for _, ref := range n.Readable {
		if ref == "" || strings.Contains(ref, "@") {
			return fmt.Errorf("readable %q: name a layer, an image or a container, without a snapshot", ref)
		}
	}
	_, err := parseLimit(n.MaxBytes)
	return err
}
