package detect

import (
	"bytes"
	"fmt"
)

// parseProperties reads the output of "zfs get -Hp -o property,value …" or the same of zpool: lines of a
// name, a tab and a value. Each of want has to be there.
func parseProperties(out []byte, want ...string) (map[string]string, error) {
	properties := make(map[string]string, len(want))
	for line := range bytes.Lines(out) {
		name, value, ok := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte("\t"))
		if !ok {
			return nil, fmt.Errorf("line %q: no tab between a property and its value", line)
		}
		properties[string(name)] = string(value)
	}
	for _, name := range want {
		if _, ok := properties[name]; !ok {
			return nil, fmt.Errorf("no property %s in %q", name, out)
		}
	}
	return properties, nil
}

// pool is the state of a ZFS pool.
type pool struct {
	health   string // ONLINE, DEGRADED, FAULTED, OFFLINE, REMOVED, UNAVAIL or SUSPENDED
	readOnly bool
}

func parsePool(out []byte) (pool, error) {
	p, err := parseProperties(out, "health", "readonly")
	return pool{health: p["health"], readOnly: p["readonly"] == "on"}, err
}

// unusable says why no layers can be kept in the pool name and what to do, or "".
func (p pool) unusable(name string) string {
	switch {
	case p.health == "SUSPENDED":
		return fmt.Sprintf("the pool %s is suspended after errors of its devices: run \"zpool status %[1]s\", bring them back, then run \"zpool clear %[1]s\"", name)
	case p.health != "ONLINE" && p.health != "DEGRADED":
		return fmt.Sprintf("the pool %s is %s: \"zpool status %[1]s\" shows the faults of its devices", name, p.health)
	default:
		return ""
	}
}

// dataset is the state of a ZFS dataset.
type dataset struct {
	kind           string // filesystem, volume or snapshot
	mounted        bool
	readOnly       bool
	keyUnavailable bool // it is encrypted and its key is not loaded
	zoned          bool // it is handed to a user namespace
}

func parseDataset(out []byte) (dataset, error) {
	// A property that a dataset cannot have is "-".
	p, err := parseProperties(out, "type", "mounted", "readonly", "keystatus", "zoned")
	return dataset{
		kind:           p["type"],
		mounted:        p["mounted"] == "yes",
		readOnly:       p["readonly"] == "on",
		keyUnavailable: p["keystatus"] == "unavailable",
		zoned:          p["zoned"] == "on",
	}, err
}

// unusable says why no layers can be kept in the dataset name and what to do, or "".
func (d dataset) unusable(name string) string {
	switch {
	case d.kind != "filesystem":
		return fmt.Sprintf("%s is a %s: choose a filesystem", name, d.kind)
	case d.keyUnavailable:
		return fmt.Sprintf("%s is encrypted and its key is not loaded: run \"zfs load-key %[1]s\" and \"zfs mount %[1]s\"", name)
	case !d.mounted:
		return fmt.Sprintf("%s is not mounted: run \"zfs mount %[1]s\", after \"zfs set mountpoint=DIR %[1]s\" if it has no mount point", name)
	default:
		return ""
	}
}
