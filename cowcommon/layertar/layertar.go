// Package layertar turns a change set into a layer tar and a layer tar into a tree, compatible with what
// Docker and containerd read and write, and deterministic: the same change set gives the same bytes.
package layertar
