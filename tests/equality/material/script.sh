#!/bin/sh
printf "%s|" "$@" > /srv/place/script-ran
id -un >> /srv/place/script-ran
