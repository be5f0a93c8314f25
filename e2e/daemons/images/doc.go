// Package images has the round trips of images between Cowshed and other tools: skopeo, buildah, podman, umoci,
// Docker Engine of today and Debian's, ctr and nerdctl. Each loads Cowshed's exports in every format that it reads,
// under the same name and with the same digests. Cowshed imports again the images that each saves, in every format
// that it writes.
package images
