package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/quota"
)

// treeNode is a layer as tree --json prints it.
type treeNode struct {
	api.Layer
	Children []*treeNode `json:"children,omitempty"`
}

func newTreeCommand(a *app) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "tree",
		Short: "Show which layers were made from which",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(s *store) error {
				layers, err := s.List(cmd.Context(), nil)
				if err != nil {
					return err
				}
				roots := makeTree(layers)
				if asJSON {
					return printJSON(cmd, roots)
				}
				for _, root := range roots {
					if err := printTree(cmd.OutOrStdout(), root, "", ""); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	addJSON(cmd, &asJSON)
	return cmd
}

// makeTree puts layers below their parents. One whose parent is gone is a root.
func makeTree(layers []api.Layer) []*treeNode {
	nodes := make(map[string]*treeNode, len(layers))
	for _, l := range layers {
		nodes[l.Name] = &treeNode{Layer: l}
	}
	roots := []*treeNode{}
	for _, l := range layers {
		node := nodes[l.Name]
		if parent, ok := nodes[shownParent(l)]; ok && parent != node {
			parent.Children = append(parent.Children, node)
		} else {
			roots = append(roots, node)
		}
	}
	return roots
}

func printTree(w io.Writer, node *treeNode, first, rest string) error {
	line := first + layerstore.ShortName(node.Name)
	if node.Image != "" {
		line += "  image " + node.Image
	}
	if node.Limit != 0 {
		line += "  limit " + quota.FormatSize(node.Limit)
	}
	if _, err := fmt.Fprintln(w, line); err != nil {
		return err
	}
	for i, child := range node.Children {
		branch, below := "├── ", "│   "
		if i == len(node.Children)-1 {
			branch, below = "└── ", "    "
		}
		if err := printTree(w, child, rest+branch, rest+below); err != nil {
			return err
		}
	}
	return nil
}
