package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// zfs runs zfs and returns its output.
func zfs(args ...string) (string, error) {
	out, err := exec.Command("zfs", args...).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return "", fmt.Errorf("zfs %s: %w: %s", args[0], err, exit.Stderr)
	}
	return strings.TrimSuffix(string(out), "\n"), err
}

// datasetOf returns the dataset that a directory is in.
func datasetOf(dir string) (string, error) { return zfs("list", "-H", "-o", "name", dir) }

// createDataset makes the dataset that is mounted on root, below that of the directory that root is in, unless it is
// there.
func createDataset(root string) error {
	if _, err := os.Stat(root); err == nil {
		return nil
	}
	parent, err := datasetOf(filepath.Dir(root))
	if err != nil {
		return err
	}
	_, err = zfs("create", "-o", "mountpoint="+root, parent+"/"+filepath.Base(root))
	return err
}

// destroyChildren destroys, in one transaction group, the datasets below a dataset without dependents.
const destroyChildren = `
local children = {}
for child in zfs.list.children((...)["argv"][1]) do table.insert(children, child) end
for _, child in ipairs(children) do zfs.sync.destroy(child) end
`

// destroyDatasets destroys the dataset of createDataset and all that is below it.
func destroyDatasets(root string) error {
	dataset, err := datasetOf(root)
	if err != nil {
		return err
	}
	pool, _, _ := strings.Cut(dataset, "/")
	cmd := exec.Command("zfs", "program", pool, "-", dataset)
	cmd.Stdin = strings.NewReader(destroyChildren)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("zfs program: %w: %s", err, out)
	}
	if _, err := zfs("destroy", "-R", dataset); err != nil {
		return err
	}
	if err := os.Remove(root); err != nil && !errors.Is(err, os.ErrNotExist) { // zfs does so itself
		return err
	}
	return nil
}

// cloneLike makes a layer's dataset many times over, with its driver's properties, by the kernel's interface and
// several at once. With a process for each, making them would take longer than all measurements.
func cloneLike(root, model string, ids []string) error {
	dataset, err := datasetOf(root)
	if err != nil {
		return err
	}
	origin, err := zfs("get", "-H", "-o", "value", "origin", dataset+"/"+model)
	if err != nil {
		return err
	}
	set, err := zfs("get", "-Hp", "-s", "local", "-o", "property,value", "all", dataset+"/"+model)
	if err != nil {
		return err
	}
	var properties nvlist
	for line := range strings.Lines(set) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if name == "canmount" { // the kernel has it as a number
			number, ok := map[string]uint64{"off": 0, "on": 1, "noauto": 2}[value]
			if !ok {
				return fmt.Errorf("canmount=%s", value)
			}
			properties.addUint64(name, number)
			continue
		}
		properties.addString(name, value)
	}
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = dataset + "/" + id
	}
	return cloneAll(origin, names, properties)
}
