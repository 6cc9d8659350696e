"""Kills, network failures and damage: real servers, a fault proxy, real runs, and a judge."""
