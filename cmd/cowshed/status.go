package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/internal/loopstore"
)

func newStatusCommand(a *app) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Describe the store and its filesystem",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(s *store) error { return s.status(cmd, asJSON) })
		},
	}
	addJSON(cmd, &asJSON)
	return cmd
}

func (s *store) status(cmd *cobra.Command, asJSON bool) error {
	layers := 0
	for _, err := range s.Driver.Backend().Volumes(cmd.Context()) {
		if err != nil {
			return err
		}
		layers++
	}
	images, err := s.Images.List()
	if err != nil {
		return err
	}
	status := [][2]string{{"Root", s.Root}, {"Driver", s.Driver.String()}}
	if embedded, err := loopstore.At(s.Root); err == nil {
		if state, err := embedded.State(); err == nil && state != loopstore.Absent {
			status = append(status, [2]string{"Embedded Store", embedded.Image})
		}
	}
	status = append(status, [2]string{"Layers", fmt.Sprint(layers)}, [2]string{"Images", fmt.Sprint(len(images))})
	status = append(status, s.Driver.Status()...)

	if asJSON {
		object := make(map[string]string, len(status))
		for _, pair := range status {
			object[pair[0]] = pair[1]
		}
		return printJSON(cmd, object)
	}
	for _, pair := range status {
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", pair[0], pair[1]); err != nil {
			return err
		}
	}
	return nil
}
